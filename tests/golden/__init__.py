"""What users have on disk and on screen, frozen: `tests/test_golden.py` compares it.

The JSON files beside this module are the frozen state. `pytest tests/test_golden.py --regenerate`
writes them anew; a commit that does so lists each difference.
"""
