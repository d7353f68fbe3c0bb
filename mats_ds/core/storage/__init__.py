"""Files and folders: complete or not there at all, held by one writer, read within bounds. Which
module for what:

files          write, append to, read and hash one regular file; no link is followed, content
               appears in one step
documents      JSON and YAML text -> plain values; CSV text is made by files.format_csv
tensor_file    one .safetensors file, in one step
archives       zip files of arrays (.pth, .npz) of other people: refused where they unfold to more
               than their own bytes
pickle_bombs   pickles of torch of other people: refused where they ask for memory that the file
               does not hold

output_folder  the folder that a command writes into: new, empty or its own, with a marker; folders
               within it; leftovers of kills
output_file    one file that a command writes, or the named files in its folder: never an input,
               never somebody else's
own_files      many files with a record of their sums (prepare): what is ours may be replaced, what
               was changed is kept

folder_lock    one writer in one folder, from hold_folder to the end of the process; the ranks of a
               run share it
lock_file      what the lock file says: which process holds the folder; the lock itself where a
               filesystem has none
folder_watch   whether an open file is still where a person would look for it
"""
