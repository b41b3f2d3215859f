//! libibverbs itself: found and loaded when it is first asked for, never unloaded.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::io;
use std::sync::OnceLock;

use libloading::Library;

use super::sys::*;
use crate::error::VerbsError;

/// What the dynamic linker is asked for: the name with the ABI's version, which is there without development packages.
const NAME: &str = "libibverbs.so.1";

/// Declares the functions that are looked up: those that must be there, and those that may.
macro_rules! functions {
    (
        required { $(fn $name:ident($($argument:ty),* $(,)?) $(-> $result:ty)?;)* }
        optional { $(fn $option:ident($($option_argument:ty),* $(,)?) $(-> $option_result:ty)?;)* }
    ) => {
        /// The functions of the library, under its names.
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            $(pub $option: Option<unsafe extern "C" fn($($option_argument),*) $(-> $option_result)?>,)*
        }

        impl Functions {
            /// Looks every function up; the error is the first that has to be there and is not.
            ///
            /// The dynamic linker gives the newest version of each, which is what a program linked today would get.
            unsafe fn find(library: &'static Library) -> Result<Functions, &'static str> {
                Ok(Functions {
                    // SAFETY: the types are those of the header.
                    $($name: *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map_err(|_| stringify!($name))?,)*
                    // SAFETY: as above.
                    $($option: unsafe { library.get(concat!(stringify!($option), "\0").as_bytes()) }
                        .ok().map(|symbol| *symbol),)*
                })
            }
        }
    };
}

functions! {
    required {
        fn ibv_get_device_list(*mut c_int) -> *mut *mut ibv_device;
        fn ibv_free_device_list(*mut *mut ibv_device);
        fn ibv_open_device(*mut ibv_device) -> *mut ibv_context;
        fn ibv_close_device(*mut ibv_context) -> c_int;
        fn ibv_query_device(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        fn ibv_query_port(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
        fn ibv_query_gid(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
        fn ibv_query_pkey(*mut ibv_context, u8, c_int, *mut u16) -> c_int;
        fn ibv_get_async_event(*mut ibv_context, *mut ibv_async_event) -> c_int;
        fn ibv_ack_async_event(*mut ibv_async_event);
        fn ibv_event_type_str(u32) -> *const c_char;
        fn ibv_alloc_pd(*mut ibv_context) -> *mut ibv_pd;
        fn ibv_dealloc_pd(*mut ibv_pd) -> c_int;
        fn ibv_reg_mr(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
        fn ibv_dereg_mr(*mut ibv_mr) -> c_int;
        fn ibv_create_comp_channel(*mut ibv_context) -> *mut ibv_comp_channel;
        fn ibv_destroy_comp_channel(*mut ibv_comp_channel) -> c_int;
        fn ibv_create_cq(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
        fn ibv_destroy_cq(*mut ibv_cq) -> c_int;
        fn ibv_get_cq_event(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
        fn ibv_ack_cq_events(*mut ibv_cq, c_uint);
        fn ibv_create_qp(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
        fn ibv_modify_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
        fn ibv_destroy_qp(*mut ibv_qp) -> c_int;
        fn ibv_fork_init() -> c_int;
        fn ibv_qp_to_qp_ex(*mut ibv_qp) -> *mut ibv_qp_ex;
    }
    optional {
        // Since rdma-core 32; before that, GIDs are asked for one by one and their kinds are read from sysfs.
        fn _ibv_query_gid_table(*mut ibv_context, *mut ibv_gid_entry, usize, u32, usize) -> isize;
    }
}

/// The library, loaded once per process. What failed is tried again: somebody may have installed it meanwhile.
pub fn functions() -> Result<&'static Functions, VerbsError> {
    static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
    if let Some(functions) = FUNCTIONS.get() {
        return Ok(functions);
    }
    let functions = load(NAME)?;
    Ok(FUNCTIONS.get_or_init(|| functions))
}

fn load(name: &str) -> Result<Functions, VerbsError> {
    // SAFETY: the library's initialisers run; under this name it is rdma-core's, by the word of who administers the machine.
    let library = unsafe { Library::new(name) }
        .map_err(|error| VerbsError::NoLibrary { reason: error.to_string().trim_end().to_owned() })?;
    // Never unloaded: its drivers keep threads' and the process's state.
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: the signatures are the header's, and the library keeps them (its symbols are versioned).
    let functions = unsafe { Functions::find(library) }
        .map_err(|symbol| VerbsError::OldLibrary { library: name.to_owned(), symbol })?;
    // Before anything else of the library: memory that a device uses must not become copy-on-write when this process, or a program
    // that uses the client library, forks: who writes first gets a new page, and the device keeps the old one. Kernels since 5.12 copy
    // such pages when they fork, and there this does nothing.
    // SAFETY: no arguments; nothing of the library has been called yet in this process as far as we know, and if so it says EINVAL.
    let status = unsafe { (functions.ibv_fork_init)() };
    if status != 0 {
        let error = io::Error::from_raw_os_error(status);
        tracing::warn!("libibverbs cannot protect registered memory from fork(): {error}");
    }
    Ok(functions)
}

/// What errno says after a function that returned a null pointer. Some drivers say nothing there.
pub fn errno() -> io::Error {
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(0) => io::Error::other("the driver gives no reason"),
        error => error,
    }
}

/// Forgets what errno was, so that [`errno`] is about the call that follows.
pub fn clear_errno() {
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() = 0 }
}

/// The extended context around a context, if it has one and that reaches as far as the last `needed` bytes of our record.
///
/// # Safety
/// The context is open.
unsafe fn extended(context: *mut ibv_context, needed: usize) -> Option<*mut verbs_context> {
    // SAFETY: by the caller.
    let marked = unsafe { (*context).abi_compat } as usize == usize::MAX;
    if !marked {
        return None;
    }
    let outer =
        context.wrapping_byte_sub(std::mem::offset_of!(verbs_context, context)).cast::<verbs_context>();
    // SAFETY: the mark says that the context lies in a `verbs_context`, of which `sz` is always there.
    (unsafe { (*outer).sz } >= needed).then_some(outer)
}

/// `ibv_query_port`, which the header makes a call through the extended context so that it can have newer fields. Says errno.
///
/// # Safety
/// The context is open.
pub unsafe fn query_port(
    functions: &Functions,
    context: *mut ibv_context,
    port: u8,
    attr: &mut ibv_port_attr,
) -> c_int {
    let needed = size_of::<verbs_context>() - std::mem::offset_of!(verbs_context, query_port);
    // SAFETY: the context is open.
    if let Some(outer) = unsafe { extended(context, needed) }
        // SAFETY: it reaches as far as this field.
        && let Some(query) = unsafe { (*outer).query_port }
    {
        // SAFETY: the record is as long as we say.
        return unsafe { query(context, port, attr, size_of::<ibv_port_attr>()) };
    }
    // SAFETY: the exported function fills an older and shorter record that begins in the same way.
    unsafe { (functions.ibv_query_port)(context, port, attr) }
}

/// `ibv_create_qp_ex`, which the header makes a call through the extended context. Null, with errno, as there.
///
/// # Safety
/// The context is open, and what the attributes point at is of it.
pub unsafe fn create_qp_ex(context: *mut ibv_context, attr: &mut ibv_qp_init_attr_ex) -> *mut ibv_qp {
    let needed = size_of::<verbs_context>() - std::mem::offset_of!(verbs_context, create_qp_ex);
    // SAFETY: the context is open.
    if let Some(outer) = unsafe { extended(context, needed) }
        // SAFETY: it reaches as far as this field.
        && let Some(create) = unsafe { (*outer).create_qp_ex }
    {
        // SAFETY: by the caller.
        return unsafe { create(context, attr) };
    }
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() = libc::EOPNOTSUPP };
    std::ptr::null_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_library_the_error_says_what_to_install() {
        let error = load("libibverbs-of-nobody.so.1").err().map(|error| error.to_string());
        let error = error.expect("there is no such library");
        assert!(
            error.contains("libibverbs-of-nobody.so.1") && error.contains("ibverbs-providers"),
            "{error}"
        );
    }

    #[test]
    fn a_library_that_is_another_is_named_with_what_it_lacks() {
        let error = load("libc.so.6").err().map(|error| error.to_string()).expect("libc has no verbs");
        assert!(error.contains("libc.so.6") && error.contains("`ibv_get_device_list`"), "{error}");
    }
}
