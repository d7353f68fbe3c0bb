"""NVDEC as the loader uses it: what this GPU decodes (limits), which files of a list go there
(route), and what it refused (refusals)."""
