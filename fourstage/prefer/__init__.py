"""A person chooses the better of two answers in the browser: `fourstage prefer runs/sft`."""
