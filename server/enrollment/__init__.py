"""Makes agents of devices: attestation, credential activation, endorsement certificates, or by hand."""
