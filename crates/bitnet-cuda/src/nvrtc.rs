//! NVIDIA's run-time compiler, where its library is found: it makes machine code of the kernels' sources, and needs no GPU for it.

use crate::error::CompileError;
use cudarc::nvrtc::sys::{self, nvrtcResult};
use std::ffi::{CString, c_char};

/// The oldest version that knows the sources' language and the architectures that they are for.
const NEEDED: (i32, i32) = (12, 0);

/// The version of the compiler.
///
/// # Errors
/// Its library is not found, or too old.
pub fn compiler() -> Result<(i32, i32), CompileError> {
    // SAFETY: looks for the library, whose initializers are as sound as the library is.
    if !unsafe { sys::is_culib_present() } {
        return Err(CompileError::NotFound);
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there, and the numbers go to `major` and `minor`.
    check(unsafe { sys::nvrtcVersion(&mut major, &mut minor) }, String::new)?;
    match (major, minor) {
        found if found < NEEDED => Err(CompileError::TooOld { found, needed: NEEDED }),
        found => Ok(found),
    }
}

/// Machine code of `source`, which may include `headers` (name and text), for the architecture of this name.
pub(crate) fn compile(
    source: &str,
    headers: &[(&str, &str)],
    architecture: &str,
    options: &[String],
) -> Result<Vec<u8>, CompileError> {
    compiler()?;
    // Rounding as the sources write it, as in scripts/cuda-kernels.sh; lambdas of kernels are the device's.
    let own = [
        format!("--gpu-architecture={architecture}"),
        "--std=c++20".to_owned(),
        "--fmad=false".to_owned(),
        "--device-as-default-execution-space".to_owned(),
    ];
    let source = text(source)?;
    let names = headers.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
    let texts = headers.iter().map(|(_, text_of)| text(text_of)).collect::<Result<Vec<_>, _>>()?;
    let options = own.iter().chain(options).map(|o| text(o)).collect::<Result<Vec<_>, _>>()?;
    let pointers = |of: &[CString]| of.iter().map(|text| text.as_ptr()).collect::<Vec<*const c_char>>();
    let (names, texts, options) = (pointers(&names), pointers(&texts), pointers(&options));
    let count = |of: &[*const c_char]| i32::try_from(of.len()).unwrap_or(i32::MAX);
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: all texts end with a zero and live until this function ends, and there are as many as is said.
    let created = unsafe {
        sys::nvrtcCreateProgram(
            &mut program.0,
            source.as_ptr(),
            c"kernel.cu".as_ptr(),
            count(&names),
            texts.as_ptr(),
            names.as_ptr(),
        )
    };
    check(created, String::new)?;
    // SAFETY: the program was made above, and there are as many options as is said.
    let compiled = unsafe { sys::nvrtcCompileProgram(program.0, count(&options), options.as_ptr()) };
    check(compiled, || program.log())?;
    let mut bytes = 0;
    // SAFETY: the program is compiled, and `bytes` is where the number goes.
    check(unsafe { sys::nvrtcGetCUBINSize(program.0, &mut bytes) }, String::new)?;
    let mut code = vec![0u8; bytes];
    // SAFETY: `code` has as many bytes as the compiler asked for.
    check(unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()) }, String::new)?;
    Ok(code)
}

fn text(of: &str) -> Result<CString, CompileError> {
    CString::new(of).map_err(|_| CompileError::Failed { why: "a text with a zero in it".to_owned() })
}

fn check(code: nvrtcResult, log: impl FnOnce() -> String) -> Result<(), CompileError> {
    if code == nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // The first line of the log is what went wrong; the others say where.
    let log = log();
    let line = log.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Err(CompileError::Failed { why: format!("error {}: {line}", code as u32) })
}

struct Program(sys::nvrtcProgram);

impl Program {
    /// What the compiler has to say.
    fn log(&self) -> String {
        let mut bytes = 0;
        // SAFETY: the program is one of the compiler's, and `bytes` is where the number goes.
        if unsafe { sys::nvrtcGetProgramLogSize(self.0, &mut bytes) } != nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        let mut log = vec![0u8; bytes];
        // SAFETY: `log` has as many bytes as the compiler asked for.
        unsafe { sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) };
        let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
        String::from_utf8_lossy(&log[..end]).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the program was made by this library, and nobody uses it any more.
            unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
        }
    }
}
