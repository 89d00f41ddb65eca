//! Does an RDMA device take a writable shared file mapping as a memory region?
//!
//! The library of the verbs is looked for at run time, and only if there is a device: few hosts have one.

use super::hazards;
use super::mapping::Mapping;
use super::pattern::Mark;
use super::report::{Group, Row, Verdict};
use super::victim::{self, BYTES};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs;
use std::io;
use std::path::Path;
use std::ptr::NonNull;

const DEVICES: &str = "/sys/class/infiniband";
const LIBRARY: &CStr = c"libibverbs.so.1";
/// `IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE`
const ACCESS: c_int = 1 | 2;

type Handle = *mut c_void;

/// The row.
pub(super) fn row(directory: &Path) -> Row {
    let row = Row::new(Group::Pins, "pin-rdma", "the same, as RDMA memory", Verdict::not_applicable(""));
    let devices = fs::read_dir(DEVICES).map_or(0, Iterator::count);
    if devices == 0 {
        return Row { verdict: Verdict::not_applicable("no RDMA device"), ..row };
    }
    let path = directory.join("region");
    let answer = victim::write(&path, Mark(1))
        .and_then(|file| Mapping::shared(&file, BYTES))
        .map_err(|error| Verdict::CouldNot { why: format!("cannot map a file: {error}") })
        .and_then(|mapping| register(&mapping));
    // With the scratch directory, at the latest.
    let _ = fs::remove_file(&path);
    match answer {
        Ok(Ok(device)) => Row { verdict: Verdict::counted(1, 1, "tries"), ..row }
            .with(format!("{device} accepts it: writes after the first writeback are lost")),
        Ok(Err(error)) => Row { verdict: Verdict::counted(0, 1, "tries"), ..row }
            .with(format!("refused: {}", hazards::name(&error))),
        Err(verdict) => Row { verdict, ..row },
    }
}

/// The device that took it, or why the first that could be opened did not.
fn register(mapping: &Mapping) -> Result<io::Result<String>, Verdict> {
    let verbs = Verbs::load()?;
    let mut count = 0;
    // SAFETY: as ibv_get_device_list(3) has it; the list is freed below, after its last use.
    let list = unsafe { (verbs.get_device_list)(&mut count) };
    let Some(list) = NonNull::new(list) else {
        return Err(Verdict::not_applicable("libibverbs finds no device"));
    };
    let mut answer = Err(Verdict::not_applicable("no RDMA device can be opened; is /dev/infiniband there?"));
    for number in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` devices.
        let device = unsafe { *list.as_ptr().add(number) };
        if let Some(tried) = verbs.register_on(device, mapping) {
            answer = Ok(tried);
            break;
        }
    }
    // SAFETY: no device of the list is used any more; what was opened was closed.
    unsafe { (verbs.free_device_list)(list.as_ptr()) };
    answer
}

/// What we need of libibverbs; the names are its own.
struct Verbs {
    get_device_list: unsafe extern "C" fn(*mut c_int) -> *mut Handle,
    free_device_list: unsafe extern "C" fn(*mut Handle),
    get_device_name: unsafe extern "C" fn(Handle) -> *const c_char,
    open_device: unsafe extern "C" fn(Handle) -> Handle,
    close_device: unsafe extern "C" fn(Handle) -> c_int,
    alloc_pd: unsafe extern "C" fn(Handle) -> Handle,
    dealloc_pd: unsafe extern "C" fn(Handle) -> c_int,
    reg_mr: unsafe extern "C" fn(Handle, *mut c_void, usize, c_int) -> Handle,
    dereg_mr: unsafe extern "C" fn(Handle) -> c_int,
}

impl Verbs {
    #[expect(clippy::missing_transmute_annotations, reason = "the fields of the structure have the types")]
    fn load() -> Result<Verbs, Verdict> {
        // SAFETY: a library of the system, whose initialisers we trust as every user of it does. It is never unloaded.
        let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return Err(Verdict::not_applicable(
                "there is an RDMA device, but no libibverbs.so.1; install it",
            ));
        }
        let find = |name: &CStr| {
            // SAFETY: an open library and a name.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            let missing =
                || Verdict::CouldNot { why: format!("libibverbs has no {}", name.to_string_lossy()) };
            if found.is_null() { Err(missing()) } else { Ok(found) }
        };
        // SAFETY: the types are those that infiniband/verbs.h declares, pointers to its structures aside, which we only
        // hand around. ibv_reg_mr is a macro there too, around the function of that name.
        unsafe {
            Ok(Verbs {
                get_device_list: std::mem::transmute::<Handle, _>(find(c"ibv_get_device_list")?),
                free_device_list: std::mem::transmute::<Handle, _>(find(c"ibv_free_device_list")?),
                get_device_name: std::mem::transmute::<Handle, _>(find(c"ibv_get_device_name")?),
                open_device: std::mem::transmute::<Handle, _>(find(c"ibv_open_device")?),
                close_device: std::mem::transmute::<Handle, _>(find(c"ibv_close_device")?),
                alloc_pd: std::mem::transmute::<Handle, _>(find(c"ibv_alloc_pd")?),
                dealloc_pd: std::mem::transmute::<Handle, _>(find(c"ibv_dealloc_pd")?),
                reg_mr: std::mem::transmute::<Handle, _>(find(c"ibv_reg_mr")?),
                dereg_mr: std::mem::transmute::<Handle, _>(find(c"ibv_dereg_mr")?),
            })
        }
    }

    /// `None` if the device cannot be used at all.
    fn register_on(&self, device: Handle, mapping: &Mapping) -> Option<io::Result<String>> {
        let memory = mapping.iovec();
        // SAFETY: each handle comes from the call before it, is not null, and is given back in the opposite order. The
        // mapping outlives the region, and nobody is told the region's key, so nothing writes through it.
        unsafe {
            let context = (self.open_device)(device);
            if context.is_null() {
                return None;
            }
            let domain = (self.alloc_pd)(context);
            if domain.is_null() {
                (self.close_device)(context);
                return None;
            }
            let region = (self.reg_mr)(domain, memory.iov_base, memory.iov_len, ACCESS);
            let answer = if region.is_null() {
                Err(io::Error::last_os_error())
            } else {
                (self.dereg_mr)(region);
                Ok(CStr::from_ptr((self.get_device_name)(device)).to_string_lossy().into_owned())
            };
            (self.dealloc_pd)(domain);
            (self.close_device)(context);
            Some(answer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_has_every_call_that_we_make_of_it() {
        match Verbs::load() {
            Ok(_) => {}
            Err(Verdict::NotApplicable { why }) => eprintln!("SKIPPED: {why}"),
            Err(verdict) => panic!("{verdict:?}"),
        }
    }
}
