"""The parts of test/kms_double.py: AWS services as far as tests need them."""
