"""Measurements made on request: curvature, quantisation errors, costs. They decide nothing."""
