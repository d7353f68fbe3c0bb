"""One video file: its container, its index, its decoded frames. The way through it, from the
caller's side:

frames         read_frames, video_facts: the public functions for notebooks
decode         frame_numbers: ClipSpec -> frame numbers; visit_frames: frame numbers -> decoded
               pictures
clip_frames    the crops of one clip, scaled and flipped; colour conversion
indexing       index_video: a file -> VideoIndex, from its packets and one picture
index          VideoIndex: frames with their times, keyframes, orientation; a cache of indices
containers     open_video: opens a file with FFmpeg and nothing else; the errors of reading

packets        the bytes of each packet, to decode without the container
packet_seek    key packets to seek to where times do not serve
recording      a file decoded once from its start, where its headers do not prove its frames
clock          where the file's clock shows 0 s
orientation    how decoded pictures are mirrored and turned
nvdec_support  which files NVDEC may decode
judgement      usable, damaged in part or unreadable: the one verdict on a file
faults         FFmpeg's errors -> reasons that a person understands
"""
