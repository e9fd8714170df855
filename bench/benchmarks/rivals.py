"""How the ratios are measured."""
import statistics
import time


def ratio(rival, ours, n_calls=3, repeats=7):
    """CPU seconds of `rival` divided by those of `ours`: medians of runs that take turns."""
    spent = {rival: [], ours: []}
    for _ in range(repeats):
        for call, seconds in spent.items():
            start = time.process_time()
            for _ in range(n_calls):
                call()
            seconds.append(time.process_time() - start)
    return statistics.median(spent[rival]) / statistics.median(spent[ours])
