//! The functions of librados and librbd that are used, found when the first disk is opened: a
//! program with this feature runs without them as long as nobody wants such a disk.
//!
//! Types and functions are those of `rados/librados.h` and `rbd/librbd.h`. What they point to is
//! the libraries' own and never looked into.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, OnceLock};

use libloading::Library;

use super::mailbox::Mailbox;
use crate::bdev::{Op, Request};

/// `rados_t`, `rados_ioctx_t`, `rbd_image_t` and `rbd_completion_t` are all pointers to something.
type Handle = *mut c_void;

/// `RBD_WRITE_ZEROES_FLAG_THICK_PROVISION`: the range stays allocated.
const THICK: c_int = 1;

/// What is loaded.
struct Libraries {
    rados: Library,
    rbd: Library,
}

/// Declares a table of functions, and how it is filled.
macro_rules! functions {
    ($($library:ident: $name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions.
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// What the functions are in.
            _libraries: Libraries,
        }

        impl Functions {
            fn find(libraries: Libraries) -> Result<Self, libloading::Error> {
                $(
                    // SAFETY: the library's header declares the function with these types, and
                    // its pointer is kept beside the library that it is in.
                    let $name = *unsafe {
                        libraries.$library.get(concat!(stringify!($name), "\0").as_bytes())
                    }?;
                )*
                Ok(Self { $($name,)* _libraries: libraries })
            }
        }
    };
}

functions! {
    rados: rados_create(*mut Handle, *const c_char) -> c_int;
    rados: rados_conf_read_file(Handle, *const c_char) -> c_int;
    rados: rados_conf_set(Handle, *const c_char, *const c_char) -> c_int;
    rados: rados_connect(Handle) -> c_int;
    rados: rados_shutdown(Handle);
    rados: rados_ioctx_create(Handle, *const c_char, *mut Handle) -> c_int;
    rados: rados_ioctx_set_namespace(Handle, *const c_char);
    rados: rados_ioctx_destroy(Handle);
    rbd: rbd_open(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd: rbd_open_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd: rbd_close(Handle) -> c_int;
    rbd: rbd_get_size(Handle, *mut u64) -> c_int;
    rbd: rbd_get_stripe_unit(Handle, *mut u64) -> c_int;
    rbd: rbd_aio_create_completion(
        *mut c_void,
        extern "C" fn(Handle, *mut c_void),
        *mut Handle
    ) -> c_int;
    rbd: rbd_aio_get_return_value(Handle) -> isize;
    rbd: rbd_aio_release(Handle);
    rbd: rbd_aio_readv(Handle, *const libc::iovec, c_int, u64, Handle) -> c_int;
    rbd: rbd_aio_writev(Handle, *const libc::iovec, c_int, u64, Handle) -> c_int;
    rbd: rbd_aio_flush(Handle, Handle) -> c_int;
    rbd: rbd_aio_discard(Handle, u64, u64, Handle) -> c_int;
    rbd: rbd_aio_write_zeroes(Handle, u64, usize, Handle, c_int, c_int) -> c_int;
}

/// The functions, or why they are not there.
fn functions() -> Result<&'static Functions, String> {
    static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
    let load = || {
        if cfg!(target_feature = "crt-static") {
            return Err(
                "this vvu is linked statically and cannot load librbd: build it with \
                 RUSTFLAGS='-C target-feature=-crt-static' cargo build --release --features rbd"
                    .into(),
            );
        }
        let find = || {
            // SAFETY: what these libraries do when they are loaded has no effect on us.
            let libraries = unsafe {
                Libraries {
                    rados: Library::new("librados.so.2")?,
                    rbd: Library::new("librbd.so.1")?,
                }
            };
            Functions::find(libraries)
        };
        find().map_err(|error: libloading::Error| {
            format!("{error}; install librbd (Debian package librbd1)")
        })
    };
    FUNCTIONS.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// Why something failed: what was tried, and the error as the libraries give it, negative.
#[derive(Debug)]
pub(super) enum Failure {
    /// The libraries are not there.
    Missing(String),
    /// A name with a zero byte in it.
    Name,
    /// A function failed.
    Call(&'static str, c_int),
}

impl Failure {
    fn of(what: &'static str, result: c_int) -> Result<(), Self> {
        match result {
            0.. => Ok(()),
            error => Err(Self::Call(what, error)),
        }
    }
}

fn text(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::Name)
}

fn pointer(text: Option<&CStr>) -> *const c_char {
    text.map_or(ptr::null(), CStr::as_ptr)
}

/// Which image, and as whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// Path of the configuration; the usual ones without.
    pub(super) config: Option<&'a str>,
    /// The user, without "client."; admin without.
    pub(super) user: Option<&'a str>,
    /// Settings beyond the configuration.
    pub(super) settings: &'a [(&'a str, String)],
    pub(super) pool: &'a str,
    pub(super) namespace: Option<&'a str>,
    pub(super) image: &'a str,
    pub(super) snapshot: Option<&'a str>,
    pub(super) read_only: bool,
}

/// A connection to a cluster.
struct Cluster(&'static Functions, Handle);

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: `rados_create` made it, and what was made of it is gone: see the order of
        // `Image`'s fields.
        unsafe { (self.0.rados_shutdown)(self.1) };
    }
}

/// A pool of a cluster.
struct Pool(&'static Functions, Handle);

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: `rados_ioctx_create` made it, and no image of it is open any more.
        unsafe { (self.0.rados_ioctx_destroy)(self.1) };
    }
}

/// An open image.
struct Opened(&'static Functions, Handle);

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: `rbd_open` made it, and nothing is in flight: whoever asks for something keeps
        // the `Image`, for ever if it never ends.
        unsafe { (self.0.rbd_close)(self.1) };
    }
}

/// An image of a pool of a cluster.
pub(super) struct Image {
    // In this order they go.
    image: Opened,
    _pool: Pool,
    _cluster: Cluster,
}

// SAFETY: the handles may be used by any thread, and by several at once: the libraries lock.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Image")
    }
}

impl Image {
    /// Connects, and opens it. Waits.
    pub(super) fn open(place: Place<'_>) -> Result<Self, Failure> {
        let functions = functions().map_err(Failure::Missing)?;
        let user = place.user.map(text).transpose()?;
        let config = place.config.map(text).transpose()?;
        let pool_name = text(place.pool)?;
        let namespace = place.namespace.map(text).transpose()?;
        let (name, snapshot) = (text(place.image)?, place.snapshot.map(text).transpose()?);

        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is a place for a handle; the user is a string or null.
        let result = unsafe { (functions.rados_create)(&raw mut handle, pointer(user.as_deref())) };
        Failure::of("cannot begin", result)?;
        let cluster = Cluster(functions, handle);
        // SAFETY: the handle was just made; the path is a string or null.
        let result =
            unsafe { (functions.rados_conf_read_file)(cluster.1, pointer(config.as_deref())) };
        Failure::of("cannot read the configuration (option conf=PATH)", result)?;
        for (key, value) in place.settings {
            let (key, value) = (text(key)?, text(value)?);
            // SAFETY: the handle is not connected yet, and both are strings.
            let result =
                unsafe { (functions.rados_conf_set)(cluster.1, key.as_ptr(), value.as_ptr()) };
            Failure::of("cannot set what is configured", result)?;
        }
        // SAFETY: the handle is configured and not connected yet.
        Failure::of("cannot connect to the cluster", unsafe {
            (functions.rados_connect)(cluster.1)
        })?;
        let mut handle = ptr::null_mut();
        // SAFETY: the cluster is connected; a string, and a place for a handle.
        let result = unsafe {
            (functions.rados_ioctx_create)(cluster.1, pool_name.as_ptr(), &raw mut handle)
        };
        Failure::of("cannot use the pool", result)?;
        let pool = Pool(functions, handle);
        if let Some(namespace) = &namespace {
            // SAFETY: the pool's handle was just made; a string.
            unsafe { (functions.rados_ioctx_set_namespace)(pool.1, namespace.as_ptr()) };
        }
        let open = match place.read_only || snapshot.is_some() {
            true => functions.rbd_open_read_only,
            false => functions.rbd_open,
        };
        let mut handle = ptr::null_mut();
        let snapshot = pointer(snapshot.as_deref());
        // SAFETY: the pool's handle lives as long as the image's; strings or null; a place.
        let result = unsafe { open(pool.1, name.as_ptr(), &raw mut handle, snapshot) };
        Failure::of("cannot open the image", result)?;
        Ok(Self {
            image: Opened(functions, handle),
            _pool: pool,
            _cluster: cluster,
        })
    }

    /// Its size in bytes. Waits.
    pub(super) fn size(&self) -> Result<u64, Failure> {
        let Opened(functions, image) = &self.image;
        let mut size = 0;
        // SAFETY: the image is open; a place for a number.
        let result = unsafe { (functions.rbd_get_size)(*image, &raw mut size) };
        Failure::of("cannot ask for the size", result).map(|()| size)
    }

    /// What is best written at once, in bytes.
    pub(super) fn stripe(&self) -> Result<u64, Failure> {
        let Opened(functions, image) = &self.image;
        let mut unit = 0;
        // SAFETY: the image is open; a place for a number.
        let result = unsafe { (functions.rbd_get_stripe_unit)(*image, &raw mut unit) };
        Failure::of("cannot ask for the stripes", result).map(|()| unit)
    }

    /// Begins `request`, which comes back in `mailbox` when it is over; as a flush if `flush`,
    /// whatever it is. At once, and with the reason, if it cannot begin.
    pub(super) fn submit(
        &self,
        request: Request,
        flush: bool,
        mailbox: &Arc<Mailbox>,
    ) -> Result<(), (Request, c_int)> {
        let Opened(functions, image) = &self.image;
        let (op, offset, len) = (request.op, request.offset, request.len);
        // What is behind this address stays where it is while the request is boxed below: the list
        // is on the heap, and nobody changes it before the request is over.
        let (list, count) = match &request.data {
            Some(data) => data.iovecs(),
            None => (ptr::null(), 0),
        };
        let count = c_int::try_from(count).unwrap_or(c_int::MAX);
        let pending = Box::new(Pending {
            functions,
            mailbox: Arc::clone(mailbox),
            request,
            flush,
        });
        let argument = Box::into_raw(pending);
        let mut handle = ptr::null_mut();
        // SAFETY: `argument` is for `complete` alone, which takes it as what it is; a place for a
        // handle.
        let mut result = unsafe {
            (functions.rbd_aio_create_completion)(argument.cast(), complete, &raw mut handle)
        };
        if result >= 0 {
            let len_here = usize::try_from(len).unwrap_or(usize::MAX);
            // SAFETY: the image is open, the completion is new and used once. The list of pieces
            // and what they name belong to the request, which `Pending` keeps until `complete`;
            // both are as long as the list says, and `len` was compared with that.
            result = unsafe {
                match op {
                    _ if flush => (functions.rbd_aio_flush)(*image, handle),
                    Op::Read => (functions.rbd_aio_readv)(*image, list, count, offset, handle),
                    Op::Write => (functions.rbd_aio_writev)(*image, list, count, offset, handle),
                    Op::Flush => (functions.rbd_aio_flush)(*image, handle),
                    Op::Discard => (functions.rbd_aio_discard)(*image, offset, len, handle),
                    Op::WriteZeroes { unmap } => (functions.rbd_aio_write_zeroes)(
                        *image,
                        offset,
                        len_here,
                        handle,
                        if unmap { 0 } else { THICK },
                        0,
                    ),
                }
            };
            if result >= 0 {
                return Ok(());
            }
            // SAFETY: made above, and not begun.
            unsafe { (functions.rbd_aio_release)(handle) };
        }
        // SAFETY: from `into_raw` above; nothing was begun, so `complete` is not called with it.
        let pending = unsafe { Box::from_raw(argument) };
        Err((pending.request, result))
    }
}

/// A request that the library has.
struct Pending {
    functions: &'static Functions,
    mailbox: Arc<Mailbox>,
    request: Request,
    flush: bool,
}

/// A request that is over, and how.
#[derive(Debug)]
pub(super) struct Over {
    pub(super) request: Request,
    /// It was a flush, whatever the request is.
    pub(super) flush: bool,
    /// An error if negative.
    pub(super) result: isize,
}

/// What the library calls, on a thread of its own, when a request is over.
extern "C" fn complete(completion: Handle, argument: *mut c_void) {
    // SAFETY: from `into_raw` in `submit`, and this is called once for each request that began.
    let pending = unsafe { Box::from_raw(argument.cast::<Pending>()) };
    let Pending {
        functions,
        mailbox,
        request,
        flush,
    } = *pending;
    // SAFETY: the completion is that of this request, and over. The library keeps it for itself
    // until this function has returned, so our part of it can be given back.
    let result = unsafe {
        let result = (functions.rbd_aio_get_return_value)(completion);
        (functions.rbd_aio_release)(completion);
        result
    };
    mailbox.put(Over {
        request,
        flush,
        result,
    });
}
