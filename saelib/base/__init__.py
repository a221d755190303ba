"""What every other room needs and that knows nothing of SAEs or text; imports no other room.

Holds errors, the cache and its locks, checksums, checkpoints, devices, progress, provenance, compiled loops and small statistics.
Offers `errors.UserError`, `cache.content_key`, `cache.kept_json`, `cache.atomic_dir`, `device.choose_device`,
`progress.report_progress`.
"""
