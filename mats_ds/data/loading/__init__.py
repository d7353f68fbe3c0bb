"""ClipSpecs -> batches on the device. The way through it, from the program's side:

build      recipe sections -> a loader, or the views of a test in batches
loader     ClipLoader: the micro-batches of one rank from any step on; one thread keeps some of them
           ready
batching   BatchBuilder: asks for clips ahead, feeds the device's decoders, copies clips to their
           rows of the batch
prefetch   ClipPrefetcher: clips read ahead in order, with time limits (given_up) and substitutes
readers    ReaderPool: the processes that read, their tasks and the memory that clips come in
reader     ClipReader: ClipSpecs of a file -> decoded clips (PyAV), or its bytes for the device's
           decoder
dali       GpuDecoder: DALI's pipelines on NVDEC; the one module that imports DALI

Why processes: the Python between FFmpeg's calls is a fifth of the time of a clip, so that threads
of one process end at five times the speed of one, and training waits for what they hold of the
interpreter. One thread of the training process keeps all readers busy.

Below readers: template (the process that they are forked from), reader_process (what runs in both),
channel (messages and memory files between them and training).
"""
