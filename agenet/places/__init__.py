"""Places outside of this machine: object stores and the hub, by addresses such as s3://bucket/a."""
