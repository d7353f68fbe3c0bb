"""ClipSpecs -> batches on the device. The way through it, from the program's side:

build      recipe sections -> a loader, or the views of a test in batches
loader     ClipLoader: the micro-batches of one rank from any step on; one thread keeps some of them
           ready
batching   BatchBuilder: asks for clips ahead, feeds the device's decoders, copies clips to their
           rows of the batch
prefetch   ClipPrefetcher: worker threads that read clips in order, with time limits and substitutes
reader     ClipReader: one ClipSpec -> the decoded clip (PyAV), or the file's bytes for the device's
           decoder
dali       GpuDecoder: DALI's pipelines on NVDEC; the one module that imports DALI
"""
