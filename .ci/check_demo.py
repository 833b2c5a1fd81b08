"""Reads a demo's JSON report from stdin and fails where it misses its targets."""

import json
import sys

POOLED_MARGIN = 0.01  # federated AUC over all sites, below pooled
LOCAL_GAIN = 0.03  # above the mean of the sites' own models

report = json.load(sys.stdin)
auc = {kind: report["overall"][kind]["auc"] for kind in ("local", "federated", "pooled")}
print(
    f"seed {report['seed']}: local {auc['local']:.4f}, federated {auc['federated']:.4f}, "
    f"pooled {auc['pooled']:.4f}, {report['rounds']} rounds, {report['bytes_sent']} bytes, "
    f"{report['seconds']} s"
)
if auc["federated"] < auc["pooled"] - POOLED_MARGIN:
    sys.exit("the federation is too far below pooled training")
if auc["federated"] < auc["local"] + LOCAL_GAIN:
    sys.exit("the federation is too little above the sites' own models")
