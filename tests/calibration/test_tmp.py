import pytest, torch
from tests.calibration.test_experts import *
from transformers_qaig.utils import scratch
def test_best(vlm, monkeypatch, tmp_path):
    import time
    rec={"name": "best", "steps": 12}
    t=time.time(); whole = quantized(vlm, recipe=rec); print('whole',time.time()-t)
    monkeypatch.setattr(scratch, "LEAST", 1)
    kept=[]; keep=scratch.ScratchFiles.keep
    monkeypatch.setattr(scratch.ScratchFiles,'keep', lambda self,t,**k: (kept.append(t.shape), keep(self,t,**k))[1])
    t=time.time(); inf = quantized(vlm, recipe=rec, calibration={"expert_memory":"1B"}); print('files',time.time()-t)
    print(len(kept))
    for target in inf.qaig_report.targets: print(target.accepted[-3:], target.rejected[-2:])
    assert same(whole, inf)
