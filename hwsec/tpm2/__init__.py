"""Everything that touches tpm2_pytss, and nothing else does; `hwsec.tpm` puts it together to a backend.

Values of that library's types stay inside this package: they lie in memory of the library, and live no longer than the object
they were taken from. Parts and sections named here are those of the TPM 2.0 Library Specification, revision 1.59.
"""
