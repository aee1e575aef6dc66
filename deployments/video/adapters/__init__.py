"""Families of diffusers pipelines, each behind the calls of deployments.video.spec.StepEngine."""
