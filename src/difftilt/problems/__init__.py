"""Problems whose answers are known exactly: the judge never imports the judged."""
