"""The byte formats: one module each, pure functions from bytes to values and back.

Every decoder here accepts exactly one spelling: what it accepts encodes again to the same bytes.  Nothing in this
package does I/O, reads a clock or draws randomness.  Each format has its document under ``docs/formats/``.
"""
