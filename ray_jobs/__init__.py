"""The cluster: stages, actors, Ray Train, storage, MLflow and the command line."""
