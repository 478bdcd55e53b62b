"""What state of the machine opens the KEK: PCR policies, and the files of signed ones. Needs no TPM."""
