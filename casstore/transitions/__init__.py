"""The transitions: what each signed act does to the state of the log.

One pure function core, used by both sides: the server judges an act before it commits it, the auditor judges it again.

* :mod:`.machine`: the state so far and the judgement of the next act: begin here
* :mod:`.authority`: who asks, and may they
* :mod:`.acts`: what each act does, and when it cannot
* :mod:`.rollback`: where a rollback may go
* :mod:`.lookup`: what judging needs to know of the entries before
* :mod:`.effects`: the values in which an act's effects are told
* :mod:`.replay`: the auditor's side
"""
