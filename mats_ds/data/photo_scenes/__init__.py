"""Clips that look like video: cut-outs of photographs that move before other photographs, filmed
by a camera that moves too. The way through it:

photographs   what scikit-image ships under a free licence -> backdrops and cut-outs, RGBA
motion        what a cut-out and a camera do in time -> homographies
filming       backdrop, actors, camera -> frames with shadows, motion blur and sensor noise
clips         a folder of encoded clips, manifest.csv and the list of sources and licences
"""
