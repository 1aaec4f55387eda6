//! OpenVINO's C interface behind types that cannot be misused: everything unsafe about it is here.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;

use openvino_sys as sys;

/// What a call answered when it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallError(pub(super) String);

type Result<T> = std::result::Result<T, CallError>;

/// The calls made here, and those that `sys` makes to learn the version.
const CALLS: [&str; 24] = [
    "ov_available_devices_free",
    "ov_compiled_model_create_infer_request",
    "ov_compiled_model_free",
    "ov_core_compile_model_props",
    "ov_core_create",
    "ov_core_free",
    "ov_core_get_available_devices",
    "ov_core_read_model",
    "ov_get_last_err_msg",
    "ov_get_openvino_version",
    "ov_infer_request_free",
    "ov_infer_request_get_tensor",
    "ov_infer_request_infer",
    "ov_infer_request_set_tensor",
    "ov_model_free",
    "ov_shape_create",
    "ov_shape_free",
    "ov_tensor_create",
    "ov_tensor_data",
    "ov_tensor_free",
    "ov_tensor_get_byte_size",
    "ov_tensor_get_element_type",
    "ov_tensor_get_size",
    "ov_version_free",
];

/// Bytes of the library that are searched for names; OpenVINO's has half a megabyte.
const LONGEST_LIBRARY: u64 = 64 << 20;

/// Loads the library; later calls change nothing.
pub(super) fn load(path: &Path) -> Result<()> {
    // `sys` panics at a call that the library lacks: its names are looked for first, before any of its code runs.
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_LIBRARY).read_to_end(&mut bytes))
        .map_err(|error| CallError(error.to_string()))?;
    let names: HashSet<&[u8]> = bytes.split(|&byte| byte == 0).collect();
    let missing = |name: &&&str| !names.contains(name.as_bytes());
    let lacking: Vec<_> = CALLS.iter().filter(missing).collect();
    match lacking.first() {
        None => sys::library::load_from(path).map_err(CallError),
        Some(_) if lacking.len() == CALLS.len() => {
            Err(CallError("is no library of OpenVINO".into()))
        }
        Some(name) => Err(CallError(format!(
            "is too old: it has no `{name}`; update OpenVINO to 2025.1 or later"
        ))),
    }
}

/// The runtime: what finds devices and compiles models.
pub(super) struct Core {
    core: *mut sys::ov_core_t,
}

// SAFETY: OpenVINO documents its core, compiled models and requests as usable from any thread; the types here
// take `&mut` where calls must not overlap.
unsafe impl Send for Core {}
// SAFETY: as above: the core's own methods are thread-safe.
unsafe impl Sync for Core {}

impl Core {
    pub(super) fn new() -> Result<Self> {
        let mut core = null_mut();
        // SAFETY: the library is loaded, or the call answers an error; `core` is written on success.
        check(unsafe { sys::ov_core_create(&mut core) })?;
        Ok(Core { core })
    }

    /// Names of the devices that are here.
    pub(super) fn devices(&self) -> Result<Vec<String>> {
        // SAFETY: plain data, which the call overwrites.
        let mut found: sys::ov_available_devices_t = unsafe { std::mem::zeroed() };
        // SAFETY: the core is alive.
        check(unsafe { sys::ov_core_get_available_devices(self.core, &mut found) })?;
        let names = (0..found.size)
            // SAFETY: the call gave `size` texts that end in zero.
            .map(|index| unsafe {
                CStr::from_ptr(*found.devices.add(index))
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        // SAFETY: given by the call above, freed once.
        unsafe { sys::ov_available_devices_free(&mut found) };
        Ok(names)
    }

    /// Reads and compiles a model.
    pub(super) fn compile(
        self: &Arc<Self>,
        model: &Path,
        device: &str,
        properties: &[(String, String)],
    ) -> Result<Arc<Compiled>> {
        let path = text(&model.to_string_lossy())?;
        let device = text(device)?;
        let mut read = null_mut();
        // SAFETY: the core is alive, the path ends in zero; without a second path the weights lie beside the first.
        check(unsafe {
            sys::ov_core_read_model(self.core, path.as_ptr(), std::ptr::null(), &mut read)
        })?;
        let owned: Vec<(CString, CString)> = properties
            .iter()
            .map(|(key, value)| Ok((text(key)?, text(value)?)))
            .collect::<Result<_>>()?;
        let list: Vec<sys::ov_property_t> = owned
            .iter()
            .map(|(key, value)| sys::ov_property_t {
                key: key.as_ptr(),
                value: value.as_ptr().cast(),
            })
            .collect();
        let mut compiled = null_mut();
        // SAFETY: core and model are alive; the properties point to texts that live until after the call.
        let status = unsafe {
            sys::ov_core_compile_model_props(
                self.core,
                read,
                device.as_ptr(),
                list.len(),
                list.as_ptr(),
                &mut compiled,
            )
        };
        // The message is that of the last call: fetched before the next one.
        let result = check(status);
        // SAFETY: given by the read above; the compiled model keeps what it needs of it.
        unsafe { sys::ov_model_free(read) };
        result?;
        Ok(Arc::new(Compiled {
            compiled,
            _core: self.clone(),
        }))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // SAFETY: created by `new`, freed once.
        unsafe { sys::ov_core_free(self.core) };
    }
}

/// A compiled model.
pub(super) struct Compiled {
    compiled: *mut sys::ov_compiled_model_t,
    _core: Arc<Core>,
}

// SAFETY: see `Core`.
unsafe impl Send for Compiled {}
// SAFETY: see `Core`.
unsafe impl Sync for Compiled {}

impl Compiled {
    /// A request with empty variables.
    pub(super) fn request(self: &Arc<Self>) -> Result<Request> {
        let mut request = null_mut();
        // SAFETY: the compiled model is alive.
        check(unsafe { sys::ov_compiled_model_create_infer_request(self.compiled, &mut request) })?;
        Ok(Request {
            request,
            _compiled: self.clone(),
        })
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // SAFETY: created by `compile`, freed once, after all requests, which hold it.
        unsafe { sys::ov_compiled_model_free(self.compiled) };
    }
}

/// A request: inputs, outputs and the variables, which are the keys and values of one sequence.
pub(super) struct Request {
    request: *mut sys::ov_infer_request_t,
    _compiled: Arc<Compiled>,
}

// SAFETY: see `Core`; all use takes `&mut`.
unsafe impl Send for Request {}

impl Request {
    /// Sets an input of 64-bit integers.
    pub(super) fn set_i64(&mut self, name: &str, shape: &[i64], content: &[i64]) -> Result<()> {
        self.set(name, sys::ov_element_type_e::I64, shape, content)
    }

    /// Sets an input of 32-bit integers.
    pub(super) fn set_i32(&mut self, name: &str, shape: &[i64], content: &[i32]) -> Result<()> {
        self.set(name, sys::ov_element_type_e::I32, shape, content)
    }

    fn set<T: Copy>(
        &mut self,
        name: &str,
        element: sys::ov_element_type_e,
        dimensions: &[i64],
        content: &[T],
    ) -> Result<()> {
        let name = text(name)?;
        // SAFETY: plain data, which the call overwrites.
        let mut shape: sys::ov_shape_t = unsafe { std::mem::zeroed() };
        // SAFETY: the dimensions are as many as said.
        check(unsafe {
            sys::ov_shape_create(dimensions.len() as i64, dimensions.as_ptr(), &mut shape)
        })?;
        let mut tensor = null_mut();
        // SAFETY: the shape is valid; it is only read.
        let created = check(unsafe { sys::ov_tensor_create(element, shape, &mut tensor) });
        // SAFETY: created above, freed once.
        unsafe { sys::ov_shape_free(&mut shape) };
        created?;
        let tensor = Tensor(tensor);
        let (mut data, mut bytes) = (null_mut(), 0);
        // SAFETY: the tensor is alive.
        check(unsafe { sys::ov_tensor_data(tensor.0, &mut data) })?;
        // SAFETY: the tensor is alive.
        check(unsafe { sys::ov_tensor_get_byte_size(tensor.0, &mut bytes) })?;
        if bytes != size_of_val(content) {
            return Err(CallError(format!(
                "an input of {bytes} bytes was given {}",
                size_of_val(content)
            )));
        }
        // SAFETY: the tensor holds `bytes` bytes, as many as the content has; they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr().cast::<u8>(), data.cast(), bytes) };
        // SAFETY: request and tensor are alive; the request counts its own reference.
        check(unsafe { sys::ov_infer_request_set_tensor(self.request, name.as_ptr(), tensor.0) })
    }

    /// Computes.
    pub(super) fn infer(&mut self) -> Result<()> {
        // SAFETY: the request is alive and borrowed exclusively.
        check(unsafe { sys::ov_infer_request_infer(self.request) })
    }

    /// Copies the last `length` floats of an output to `out`.
    pub(super) fn output(&mut self, name: &str, length: usize, out: &mut Vec<f32>) -> Result<()> {
        let name = text(name)?;
        let mut tensor = null_mut();
        // SAFETY: the request is alive.
        check(unsafe {
            sys::ov_infer_request_get_tensor(self.request, name.as_ptr(), &mut tensor)
        })?;
        let tensor = Tensor(tensor);
        let mut element = sys::ov_element_type_e::DYNAMIC;
        // SAFETY: the tensor is alive.
        check(unsafe { sys::ov_tensor_get_element_type(tensor.0, &mut element) })?;
        let (mut size, mut data) = (0, null_mut());
        // SAFETY: the tensor is alive.
        check(unsafe { sys::ov_tensor_get_size(tensor.0, &mut size) })?;
        // SAFETY: the tensor is alive.
        check(unsafe { sys::ov_tensor_data(tensor.0, &mut data) })?;
        if element != sys::ov_element_type_e::F32 || size < length {
            return Err(CallError(format!(
                "the scores are {size} elements of {element:?} instead of {length} floats"
            )));
        }
        // SAFETY: the tensor holds `size` floats and lives to the end of this function.
        let all = unsafe { std::slice::from_raw_parts(data.cast::<f32>(), size) };
        out.clear();
        out.extend_from_slice(&all[size - length..]);
        Ok(())
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // SAFETY: created by `Compiled::request`, freed once.
        unsafe { sys::ov_infer_request_free(self.request) };
    }
}

/// A tensor that is freed.
struct Tensor(*mut sys::ov_tensor_t);

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: given by a call that makes the caller its owner, freed once.
        unsafe { sys::ov_tensor_free(self.0) };
    }
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| CallError("a name holds a zero byte".into()))
}

fn check(status: sys::ov_status_e) -> Result<()> {
    if status == sys::ov_status_e::OK {
        return Ok(());
    }
    // SAFETY: a text that ends in zero and lives until the next call, or null.
    let said = unsafe {
        let message = sys::ov_get_last_err_msg();
        match message.is_null() {
            true => String::new(),
            false => CStr::from_ptr(message).to_string_lossy().into_owned(),
        }
    };
    Err(CallError(format!("{said} ({status:?})")))
}
