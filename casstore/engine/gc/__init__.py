"""Collection: what nothing needs any more is found, condemned, and after grace removed, beside everything else that goes on.

==================== =============================================================================================
roots                what is needed, and why: the only module that knows retention
reached              which objects a mark has met, in little memory
mark                 the walk from the roots
sweep                condemn, revive, drop
packs                rewriting of packs with little in them, retiring and deleting of empty ones
run                  one run, in the order that makes it safe
==================== =============================================================================================

The order is that of durability, backwards: the log's entry before the artifacts' names, those before the index, the index before
the files.  The log itself is never touched.
"""
