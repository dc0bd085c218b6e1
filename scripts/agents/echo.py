#!/usr/bin/env python3
"""Returns its payload: the smallest persistent agent, and what the benchmarks measure."""

import kurultai

kurultai.serve(lambda task: task.payload)
