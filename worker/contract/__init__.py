"""The contract: JSON Schemas and AsyncAPI, generated from the models."""
