"""The five nouns (process, transition, policy, algorithm, sampler) and what they share."""
