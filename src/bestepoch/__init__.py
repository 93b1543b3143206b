"""Which epoch of which configuration is best, and can that be trusted?"""
