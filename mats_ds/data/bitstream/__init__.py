"""Headers of coded video: what the packets of a stream say of their pictures. Nothing is decoded.
The way through it:

stream_proof   StreamProof: all packets of a stream -> which frame each shows, where decoding can
               begin, or the doubt
pictures       a packet -> its pieces of one picture each
coded_picture  CodedPicture: what the readers below give for every codec alike
h264 hevc mpeg2 mpeg4 open_codecs    the reader of each codec's headers (open_codecs: VP8, VP9, AV1)
bits           bits, Exp-Golomb numbers and NAL units
palette        whether a palette video can be decoded from its middle
"""
