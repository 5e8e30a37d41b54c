"""launch/train.py on one rank of several, with the engines of tests and the control at its end.

What the run logged is written to ``PROBE_DIR/rank-N.json``.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from transformers import TrainerCallback

from grpo_stream.train.cluster.early_end import end_process
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.launch.support import load_script
from tests.vllm.engines import EXACT, SyncOff, use_engines

NUM_SYNCED, NUM_CONTROL = 3, 1


class Trainer(PersonalizedGRPOTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(SyncOff(self, NUM_SYNCED))
        self.add_callback(WriteLog())


class WriteLog(TrainerCallback):
    def on_train_end(self, args, state, control, **_):
        path = Path(os.environ["PROBE_DIR"], f"rank-{os.environ['RANK']}.json")
        path.write_text(json.dumps(state.log_history))


def main():
    script = load_script("train")
    script.PersonalizedGRPOTrainer = Trainer
    with pytest.MonkeyPatch.context() as patch:
        use_engines(patch, **EXACT)
        return script.main(sys.argv[1:])


if __name__ == "__main__":
    end_process(main())  # as the script does
