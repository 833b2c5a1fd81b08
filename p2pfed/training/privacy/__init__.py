"""Differentially private local training: DP-SGD (Abadi et al., *Deep Learning with Differential
Privacy*, CCS 2016) and the accounting of what it spends. topology/PRIVACY.md is its page."""
