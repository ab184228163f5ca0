//! The driver: what this crate asks of it, and the only place with unsafe code.
//!
//! [`Driver`] owns a device's context, one stream and the module of kernels. Nothing here is linked: the driver's library is
//! looked for when somebody asks for a device.

mod peers;
mod staging;

use crate::error::CudaError;
use crate::memory::Buffer;
use cudarc::driver::sys::{self, CUresult};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

pub(crate) use peers::Rectangle;
pub(crate) use staging::Staging;

/// The version of the driver's interface that the kernels were compiled for: 1000 times its major number.
const NEEDED: i32 = 13_000;
/// What the driver is given: machine code for the common architectures, and PTX for the others.
pub(crate) static KERNELS: &[u8] = include_bytes!("../generated/kernels.fatbin");
/// The same of what only training needs, so that who does not train does not wait for it.
pub(crate) static TRAINING_KERNELS: &[u8] = include_bytes!("../generated/training.fatbin");
/// Parameters of a kernel, at most.
const MAX_PARAMS: usize = 18;

/// A GPU as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDetails {
    /// What it calls itself.
    pub name: String,
    /// Its compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub memory: usize,
    /// Multiprocessors.
    pub processors: u32,
    /// The version of the driver's interface, 1000 times its major number.
    pub driver: i32,
}

impl DeviceDetails {
    /// What compilers call its architecture.
    pub(crate) fn architecture(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }
}

/// A kernel of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Function(usize);

/// A kernel with its arguments, each in a word of its own: addresses, and numbers in the lower bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Launch {
    function: Function,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    params: [u64; MAX_PARAMS],
}

impl Launch {
    /// A launch of `grid` blocks of `threads` threads with `shared` bytes of memory that they share.
    pub(crate) fn new(
        function: Function,
        grid: [usize; 3],
        threads: u32,
        shared: usize,
        params: &[u64],
    ) -> Self {
        let mut own = [0; MAX_PARAMS];
        own[..params.len()].copy_from_slice(params);
        // Grids and shared memory beyond 32 bits are beyond every device; the driver refuses the largest number too.
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { function, grid: grid.map(word), threads, shared: word(shared), params: own }
    }

    pub(crate) fn function(&self) -> Function {
        self.function
    }

    /// The argument at this place; those that were not given are zeros.
    pub(crate) fn param(&self, place: usize) -> Option<u64> {
        self.params.get(place).copied()
    }

    /// The same launch of another kernel, which has the same parameters.
    pub(crate) fn with(&self, function: Function) -> Self {
        Self { function, ..*self }
    }

    /// The first arguments, if this is a launch of that kernel with that grid.
    pub(crate) fn is<const N: usize>(&self, function: Function, grid: [u32; 3]) -> Option<&[u64; N]> {
        (self.function == function && self.grid == grid).then(|| self.params.first_chunk()).flatten()
    }

    /// Whether an address is among the arguments.
    pub(crate) fn mentions(&self, address: u64) -> bool {
        self.params.contains(&address)
    }
}

/// A step's launches, as the device keeps them.
pub(crate) struct Graph(usize);

/// A device's context, its stream and its kernels.
pub(crate) struct Driver {
    details: DeviceDetails,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// What other devices wait for.
    mark: sys::CUevent,
    module: sys::CUmodule,
    /// Names of the module's kernels that were asked for.
    names: Mutex<HashMap<Function, &'static str>>,
    /// Modules of one kernel each ([`Driver::load_function`]), by their handles.
    others: Mutex<Vec<usize>>,
    /// Bytes that the threads of a block may share.
    max_shared: i32,
    /// Host memory that the device copies into.
    staging: Mutex<(usize, usize)>,
}

// SAFETY: handles of the driver may be used from any thread, and every method makes the context the calling thread's own first.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver's functions may be called from several threads at once.
unsafe impl Sync for Driver {}

fn check(what: &'static str, code: CUresult) -> Result<(), CudaError> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(CudaError::OutOfMemory),
        code => Err(CudaError::Failed { what, code: code as u32, why: describe(code) }),
    }
}

/// What the driver says about an error.
fn describe(code: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: `text` is where the driver puts a pointer to a string of its own, which lives as long as the program.
    let told = unsafe { sys::cuGetErrorString(code, &mut text) };
    if told != CUresult::CUDA_SUCCESS || text.is_null() {
        return format!("error {}", code as u32);
    }
    // SAFETY: the driver gave a string that ends with a zero.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Finds the driver and begins to use it; the version of its interface.
fn init() -> Result<i32, CudaError> {
    // SAFETY: looks for the driver's library, whose initializers are as sound as the driver is.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the library is there, and `version` is where the number goes.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    if version < NEEDED {
        return Err(CudaError::TooOld { found: version, needed: NEEDED });
    }
    // SAFETY: the library is there; 0 is the only flag there is.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_ERROR_NO_DEVICE => Err(CudaError::NoDevice),
        code => check("cuInit", code).map(|()| version),
    }
}

/// The GPUs of this machine, in the driver's order.
///
/// # Errors
/// There is no driver, or it is too old, or it has no GPU.
pub fn devices() -> Result<Vec<DeviceDetails>, CudaError> {
    let driver = init()?;
    let mut count = 0;
    // SAFETY: the driver is initialized, and `count` is where the number goes.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    (0..count).map(|number| details(device(number)?, driver)).collect()
}

/// The context that all of this process share on a device.
fn retain(device: sys::CUdevice, name: &str) -> Result<sys::CUcontext, CudaError> {
    let mut context = std::ptr::null_mut();
    // SAFETY: `device` is one of the driver's, and `context` is where the handle goes; the caller gives it back.
    let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
    if retained != CUresult::CUDA_SUCCESS {
        use sys::CUcomputemode as M;
        let mode = attribute(device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE);
        match mode.unwrap_or(0) {
            mode if mode == M::CU_COMPUTEMODE_PROHIBITED as i32 => {
                return Err(CudaError::Closed { name: name.to_owned() });
            }
            _ if retained == CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
                return Err(CudaError::InUse { name: name.to_owned() });
            }
            _ => {}
        }
    }
    check("cuDevicePrimaryCtxRetain", retained).map(|()| context)
}

/// Bytes of a GPU's memory that nobody has: other processes take of it too. Counted as [`devices`] has them.
///
/// # Errors
/// There is no such GPU, or it lets nobody in.
pub fn free_memory(number: usize) -> Result<usize, CudaError> {
    let found = devices()?;
    let Some(details) = found.get(number) else {
        return Err(CudaError::NoSuchDevice { number, found: found.len() });
    };
    let device = device(i32::try_from(number).unwrap_or(i32::MAX))?;
    let context = retain(device, &details.name)?;
    let (mut before, mut free, mut all) = (std::ptr::null_mut(), 0, 0);
    // SAFETY: the driver is initialized, the context was retained above and is given back below, when it is no longer current; each
    // pointer is where something goes.
    let told = unsafe {
        let known = sys::cuCtxGetCurrent(&mut before);
        let told = check("cuCtxGetCurrent", known)
            .and_then(|()| check("cuCtxSetCurrent", sys::cuCtxSetCurrent(context)))
            .and_then(|()| check("cuMemGetInfo", sys::cuMemGetInfo_v2(&mut free, &mut all)));
        sys::cuCtxSetCurrent(before);
        sys::cuDevicePrimaryCtxRelease_v2(device);
        told
    };
    told.map(|()| free)
}

fn device(number: i32) -> Result<sys::CUdevice, CudaError> {
    let mut device = 0;
    // SAFETY: the driver is initialized, and `device` is where the handle goes.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, number) })?;
    Ok(device)
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<i32, CudaError> {
    let mut value = 0;
    // SAFETY: `device` is one of the driver's, and `value` is where the number goes.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(value)
}

fn details(device: sys::CUdevice, driver: i32) -> Result<DeviceDetails, CudaError> {
    use sys::CUdevice_attribute as A;
    let (mut name, mut memory) = ([0u8; 256], 0);
    // SAFETY: `name` has as many bytes as the driver is told, and it writes a string that ends with a zero.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device)
    })?;
    // SAFETY: `memory` is where the number goes.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) })?;
    let number = |a| attribute(device, a).map(|n| n.try_into().unwrap_or(0));
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    Ok(DeviceDetails {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        capability: (
            number(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory,
        processors: number(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        driver,
    })
}

impl Driver {
    /// Opens the device of this number, counted as [`devices`] has them, with one of the images above.
    pub(crate) fn open(number: usize, image: &'static [u8]) -> Result<Self, CudaError> {
        let mut found = devices()?;
        let device = match i32::try_from(number) {
            Ok(n) if number < found.len() => device(n)?,
            _ => return Err(CudaError::NoSuchDevice { number, found: found.len() }),
        };
        let details = found.swap_remove(number);
        let max_shared = attribute(
            device,
            sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?;
        let mut driver = Self {
            details,
            device,
            context: std::ptr::null_mut(),
            stream: std::ptr::null_mut(),
            mark: std::ptr::null_mut(),
            module: std::ptr::null_mut(),
            names: Mutex::default(),
            others: Mutex::default(),
            max_shared,
            staging: Mutex::default(),
        };
        driver.context = retain(device, &driver.details.name)?;
        driver.bind()?;
        // SAFETY: the context is current, and `stream` is where the handle goes.
        check("cuStreamCreate", unsafe {
            sys::cuStreamCreate(&mut driver.stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32)
        })?;
        // SAFETY: as above, of `mark`.
        check("cuEventCreate", unsafe {
            sys::cuEventCreate(&mut driver.mark, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)
        })?;
        // SAFETY: the image is one that the compiler made, which knows its own length.
        let loaded = unsafe { sys::cuModuleLoadData(&mut driver.module, image.as_ptr().cast()) };
        if loaded == CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU {
            let DeviceDetails { name, capability, .. } = driver.details.clone();
            return Err(CudaError::Capability { name, capability });
        }
        check("cuModuleLoadData", loaded)?;
        Ok(driver)
    }

    pub(crate) fn details(&self) -> &DeviceDetails {
        &self.details
    }

    /// Bytes that the threads of a block may share.
    pub(crate) fn max_shared(&self) -> usize {
        self.max_shared.try_into().unwrap_or(0)
    }

    /// Makes the context the calling thread's own.
    fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is held until this is dropped.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// The kernel of this name, which may then use all the shared memory there is.
    pub(crate) fn function(&self, name: &'static str) -> Result<Function, CudaError> {
        self.bind()?;
        let function = self.function_of(self.module, name)?;
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(function, name);
        Ok(function)
    }

    /// The name of a kernel that [`Driver::function`] gave.
    pub(crate) fn name(&self, function: Function) -> Option<&'static str> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&function).copied()
    }

    /// The kernel of this name in a module of its own, which stays loaded. The image is machine code that a compiler made.
    pub(crate) fn load_function(&self, image: &[u8], name: &'static str) -> Result<Function, CudaError> {
        self.bind()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the context is current, `module` is where the handle goes, and the image is whole: it comes from the compiler, or from a
        // file that has the hash of what came from there.
        check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) })?;
        self.others.lock().unwrap_or_else(PoisonError::into_inner).push(module as usize);
        self.function_of(module, name)
    }

    fn function_of(&self, module: sys::CUmodule, name: &'static str) -> Result<Function, CudaError> {
        let c_name = CString::new(name).map_err(|_| CudaError::NoKernel { name })?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded and the context current, `c_name` ends with a zero, and `function` is where the handle goes.
        let found = unsafe { sys::cuModuleGetFunction(&mut function, module, c_name.as_ptr()) };
        if found == CUresult::CUDA_ERROR_NOT_FOUND {
            return Err(CudaError::NoKernel { name });
        }
        check("cuModuleGetFunction", found)?;
        use sys::CUfunction_attribute as A;
        let mut fixed = 0;
        // SAFETY: `function` is a kernel of the module, and `fixed` is where the number goes.
        check("cuFuncGetAttribute", unsafe {
            sys::cuFuncGetAttribute(&mut fixed, A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function)
        })?;
        // SAFETY: `function` is a kernel of the module.
        check("cuFuncSetAttribute", unsafe {
            sys::cuFuncSetAttribute(
                function,
                A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                self.max_shared - fixed,
            )
        })?;
        Ok(Function(function as usize))
    }

    /// Bytes of the device's memory that nobody has, and all of them.
    pub(crate) fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current, and both are where the numbers go.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    /// The address of so many bytes of the device.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.bind()?;
        let mut address = 0;
        // SAFETY: `address` is where the address goes.
        check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes) })?;
        Ok(address)
    }

    /// Gives back what [`Driver::allocate`] gave, once what is under way on the device has ended: the driver waits for it.
    pub(crate) fn free(&self, address: u64) {
        // Where the context is broken, its memory is gone with it.
        if self.bind().is_ok() {
            // SAFETY: the address came from `cuMemAlloc`, and the block that had it is dropped with this call.
            unsafe { sys::cuMemFree_v2(address) };
        }
    }

    /// Has zeros written behind what is under way.
    pub(crate) fn zero(&self, buffer: &Buffer) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the buffer has that many bytes.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(buffer.address(), 0, buffer.bytes(), self.stream)
        })
    }

    /// Has bytes written behind what is under way; they are copied before this returns.
    pub(crate) fn upload(&self, buffer: &Buffer, at: usize, bytes: &[u8]) -> Result<(), CudaError> {
        assert!(at + bytes.len() <= buffer.bytes(), "bytes that go into a buffer");
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `bytes` can be read, and it was seen above that the buffer has room. The memory is not page-locked, so that
        // the driver has taken it over when it returns.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                buffer.address() + at as u64,
                bytes.as_ptr().cast::<c_void>(),
                bytes.len(),
                self.stream,
            )
        })
    }

    /// Has bytes copied behind what is under way: from a buffer and an offset to a buffer and an offset.
    pub(crate) fn copy(
        &self,
        (from, from_at): (&Buffer, usize),
        (to, to_at): (&Buffer, usize),
        bytes: usize,
    ) -> Result<(), CudaError> {
        assert!(from_at + bytes <= from.bytes() && to_at + bytes <= to.bytes(), "bytes that are copied");
        self.bind()?;
        // SAFETY: it was seen above that both have the bytes.
        check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(
                to.address() + to_at as u64,
                from.address() + from_at as u64,
                bytes,
                self.stream,
            )
        })
    }

    /// Waits for what is under way, and reads so many bytes at an offset of each buffer, one behind the other.
    pub(crate) fn read(
        &self,
        from: &[(&Buffer, usize, usize)],
        take: impl FnOnce(&[u8]),
    ) -> Result<(), CudaError> {
        self.bind()?;
        let bytes: usize = from.iter().map(|(_, _, bytes)| bytes).sum();
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if staging.1 < bytes {
            self.synchronize()?;
            self.free_staging(&mut staging);
            let (mut address, size) = (std::ptr::null_mut(), bytes.next_power_of_two());
            // SAFETY: `address` is where the address goes.
            check("cuMemAllocHost", unsafe { sys::cuMemAllocHost_v2(&mut address, size) })?;
            *staging = (address as usize, size);
        }
        let mut at = 0;
        for (buffer, offset, bytes) in from {
            assert!(offset + bytes <= buffer.bytes(), "bytes that are read");
            // SAFETY: the buffer has the bytes, and there is room for all pieces in `staging`.
            check("cuMemcpyDtoHAsync", unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    (staging.0 + at) as *mut c_void,
                    buffer.address() + *offset as u64,
                    *bytes,
                    self.stream,
                )
            })?;
            at += bytes;
        }
        self.synchronize()?;
        if bytes > 0 {
            // SAFETY: the copies have ended, nobody else has `staging` while it is locked, and it has that many bytes.
            take(unsafe { std::slice::from_raw_parts(staging.0 as *const u8, bytes) });
        }
        Ok(())
    }

    fn free_staging(&self, staging: &mut (usize, usize)) {
        if staging.1 > 0 {
            // SAFETY: the memory came from `cuMemAllocHost`, and no copy into it is under way.
            unsafe { sys::cuMemFreeHost(staging.0 as *mut c_void) };
            *staging = (0, 0);
        }
    }

    /// Waits for what is under way.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream is this driver's.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Has kernels run, one behind the other.
    ///
    /// # Safety
    /// Each launch has the parameters that its kernel declares, and addresses among them are of buffers that live until the
    /// kernel has ended and are as large as it expects.
    pub(crate) unsafe fn launch(&self, launches: &[Launch]) -> Result<(), CudaError> {
        self.bind()?;
        launches.iter().try_for_each(|launch| {
            let mut params = launch.params;
            let mut pointers: [*mut c_void; MAX_PARAMS] =
                std::array::from_fn(|i| (&raw mut params[i]).cast::<c_void>());
            // A kernel may begin while the one before it ends: all wait before they touch what another one wrote.
            let mut attribute = sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            };
            let config = sys::CUlaunchConfig {
                gridDimX: launch.grid[0],
                gridDimY: launch.grid[1],
                gridDimZ: launch.grid[2],
                blockDimX: launch.threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: launch.shared,
                hStream: self.stream,
                attrs: &mut attribute,
                numAttrs: u32::from(self.details.capability >= (9, 0)),
            };
            // SAFETY: the caller answers for the parameters; the driver copies them before it returns.
            check("cuLaunchKernel", unsafe {
                sys::cuLaunchKernelEx(
                    &config,
                    launch.function.0 as sys::CUfunction,
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            })
        })
    }

    /// Keeps launches on the device, to be run again and again.
    ///
    /// # Safety
    /// As for [`Driver::launch`], for every time that the graph is run.
    pub(crate) unsafe fn capture(&self, launches: &[Launch]) -> Result<Graph, CudaError> {
        self.bind()?;
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream is this driver's and nobody else records on it.
        check("cuStreamBeginCapture", unsafe {
            sys::cuStreamBeginCapture_v2(
                self.stream,
                sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            )
        })?;
        // SAFETY: the caller answers for the launches.
        let recorded = unsafe { self.launch(launches) };
        // SAFETY: ends what was begun above, and `graph` is where the handle goes.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) });
        recorded.and(ended)?;
        // SAFETY: `graph` was made above, and `executable` is where the handle goes.
        let made = check("cuGraphInstantiate", unsafe {
            sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0)
        });
        // SAFETY: what was instantiated does not need it any more.
        unsafe { sys::cuGraphDestroy(graph) };
        made.map(|()| Graph(executable as usize))
    }

    /// Has the launches of a graph run.
    ///
    /// # Safety
    /// As for [`Driver::launch`].
    pub(crate) unsafe fn run(&self, graph: &Graph) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the graph is this driver's; the caller answers for its launches.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0 as sys::CUgraphExec, self.stream) })
    }

    /// Forgets a graph, once what is under way has ended.
    pub(crate) fn forget(&self, graph: Graph) -> Result<(), CudaError> {
        self.synchronize()?;
        // SAFETY: the graph is this driver's, and it does not run.
        check("cuGraphExecDestroy", unsafe { sys::cuGraphExecDestroy(graph.0 as sys::CUgraphExec) })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // A context that is broken gives errors here, which nobody can do anything about.
        if self.context.is_null() || self.bind().is_err() {
            return;
        }
        let _ = self.synchronize();
        let mut staging = std::mem::take(self.staging.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.free_staging(&mut staging);
        let others = std::mem::take(self.others.get_mut().unwrap_or_else(PoisonError::into_inner));
        let modules = others.into_iter().map(|module| module as sys::CUmodule).chain([self.module]);
        for module in modules.filter(|module| !module.is_null()) {
            // SAFETY: nothing runs any more.
            unsafe { sys::cuModuleUnload(module) };
        }
        if !self.mark.is_null() {
            // SAFETY: nothing here runs any more, and who waited for it waited for what has run.
            unsafe { sys::cuEventDestroy_v2(self.mark) };
        }
        if !self.stream.is_null() {
            // SAFETY: nothing runs on it any more.
            unsafe { sys::cuStreamDestroy_v2(self.stream) };
        }
        // SAFETY: retained when this was opened.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
