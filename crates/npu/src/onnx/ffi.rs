//! What the safe interface of `ort` cannot express: keys and values that are a graph's input and output at once.
#![allow(unsafe_code)]

use std::ffi::CString;

use ort::AsPointer;
use ort::session::{IoBinding, Session};
use ort::value::Tensor;

/// Binds `tensor` to the output called `name`, so that the session writes into it, also where it is an input as well.
///
/// # Safety
/// Until the outputs are cleared or bound anew, `tensor` must live, and nothing else may use its content while the
/// session runs.
pub(super) unsafe fn bind_output(
    binding: &mut IoBinding,
    name: &str,
    tensor: &Tensor<f32>,
) -> ort::Result<()> {
    let name = CString::new(name).map_err(|_| ort::Error::new("a name holds a zero byte"))?;
    // SAFETY: binding and tensor are alive; the runtime counts its own references to both.
    unsafe {
        let status = (ort::api().BindOutput)(binding.ptr_mut(), name.as_ptr(), tensor.ptr());
        ort::Error::result_from_status(status)
    }
}

/// Runs `session` with what is bound.
pub(super) fn run(session: &mut Session, binding: &IoBinding) -> ort::Result<()> {
    // SAFETY: both are alive and belong together (the binding was created by the session); the session is borrowed
    // exclusively, since running with a binding is not safe from two threads.
    unsafe {
        let status =
            (ort::api().RunWithBinding)(session.ptr().cast_mut(), std::ptr::null(), binding.ptr());
        ort::Error::result_from_status(status)
    }
}
