"""Several methods or plans on the same prompts or labels and seeds: images, quality, cost and time of each.

columns     what is compared: without a cache, methods, plan files, fewer steps
folder      the images of a column with their record, by which an interrupted comparison goes on
rounds      samples what is missing, all columns in turn, and times them
quality     PSNR, SSIM, LPIPS and CLIP of every image
result      the finished comparison as a file
"""
