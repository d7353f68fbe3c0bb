"""Augmentation of training clips. The way through it:

rand_augment    random numbers -> the operations of a clip, for the sampler
augmented_crop  whole frames -> the augmented crop: while the clip is decoded (AugmentingCropper),
                or on the GPU (AugmentedCrop)
pillow_frame device_frames    the operations on colours, of one frame by Pillow, of a clip's frames
                              by torch
tones           the operations as tables of 256 values
geometry        the movements as matrices, composed with the crop
augmenter       on a batch on the device: erasing and mixing, target distributions
mixing          mixup, cutmix and random erasing
"""
