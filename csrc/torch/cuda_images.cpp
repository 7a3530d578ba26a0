// The CUDA kernels that nvcc compiled ahead, as bytes of the library: FLASHVL_CUDA_IMAGES is the
// archive that flashvl_kernels/cuda/built.py wrote and reads back. Without one this file is empty.

#ifdef FLASHVL_CUDA_IMAGES
asm(".pushsection .rodata\n"
    ".balign 64\n"
    ".globl flashvl_cuda_images_begin\n"
    "flashvl_cuda_images_begin:\n"
    ".incbin \"" FLASHVL_CUDA_IMAGES
    "\"\n"
    ".globl flashvl_cuda_images_end\n"
    "flashvl_cuda_images_end:\n"
    ".byte 0\n"
    ".popsection\n");
#endif
