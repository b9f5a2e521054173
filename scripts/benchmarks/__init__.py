"""What scripts/bench times: data of several shapes, contenders, bars."""
