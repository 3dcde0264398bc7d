"""Pages, tables and figures of a run or a calibration; measures and decides nothing."""
