# Installs the build into a folder of its own and builds a program with find_package(edgeprune-plugins).
execute_process(COMMAND ${CMAKE_COMMAND} -E rm -rf ${WORK})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/installed OUTPUT_QUIET
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/package -B ${WORK}/build
                        -DCMAKE_PREFIX_PATH=${WORK}/installed -DCMAKE_CXX_COMPILER=${CXX} -DCUDAToolkit_ROOT=${CUDAROOT}
                        -DPLUGINS=${PLUGINS}
                COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK}/build COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${WORK}/build/use_package COMMAND_ERROR_IS_FATAL ANY)
