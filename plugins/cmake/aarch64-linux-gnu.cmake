# Cross-compiles the host-only parts for 64-bit Arm Linux (Debian: g++-aarch64-linux-gnu); with qemu-user the tests run
# too:
#   cmake -S plugins -B build/plugins-aarch64 -DEDGEPRUNE_CUDA=OFF \
#         -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
find_program(edgeprune_qemu qemu-aarch64)
if(edgeprune_qemu)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${edgeprune_qemu} -L /usr/aarch64-linux-gnu)
endif()
