"""What tests share: small models, random plans, and references that know nothing of the library."""
