//! Paths that users name: one file must be one name, whichever way leads to it. flock(1) has that
//! from the inode; here it comes from following the links, so that the path that is left has none.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

/// How many links are followed (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Why a path stands for no file.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("a relative path needs the current directory, which cannot be read")]
    NoDirectory,
    #[error("there is no folder {}", .0.display())]
    NoFolder(PathBuf),
    #[error("cannot look at {}: {error}", .path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("too many symbolic links")]
    Links,
}

/// The path from the root without links, `.`, `..` and a slash at the end. All of it has to exist
/// except the last part, as for a program that opens the file to create it.
///
/// Two names of one inode (hard links) stay two paths.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, ResolveError> {
    let absolute = std::path::absolute(path).map_err(|_| ResolveError::NoDirectory)?;
    let mut rest: VecDeque<OsString> = parts(&absolute);
    let mut resolved = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&part);
        let metadata = match next.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound && rest.is_empty() => return Ok(next),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(ResolveError::NoFolder(next)),
            found => found.map_err(|error| ResolveError::Unreadable { path: next.clone(), error })?,
        };
        if !metadata.is_symlink() {
            if !rest.is_empty() && !metadata.is_dir() {
                return Err(ResolveError::NoFolder(next));
            }
            resolved = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(ResolveError::Links);
        }
        let target = next.read_link().map_err(|error| ResolveError::Unreadable { path: next.clone(), error })?;
        if target.is_absolute() {
            resolved = PathBuf::from("/");
        }
        for part in parts(&target).into_iter().rev() {
            rest.push_front(part);
        }
    }
    Ok(resolved)
}

/// The parts of a path that lead somewhere. `..` is one of them: behind a link it means the folder
/// of the link's target.
fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Links in the middle and at the end, absolute and relative ones, one to a file that does not
    /// exist yet, `..` behind a link, and slashes at the end all lead to the same path.
    #[test]
    fn ways_to_one_file() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().canonicalize().unwrap();
        let at = |path: &str| resolve(&base.join(path)).unwrap();
        fs::create_dir_all(base.join("a/b")).unwrap();
        symlink("a/b", base.join("relative")).unwrap();
        symlink(base.join("a/b"), base.join("absolute")).unwrap();
        symlink("relative/file", base.join("early")).unwrap();
        let file = base.join("a/b/file");
        let ways = ["a/b/file", "relative/file", "absolute/file", "early", "a//./b/../b/file", "relative/../b/file"];
        for way in ways {
            assert_eq!(at(way), file, "{way}");
        }
        fs::write(&file, "").unwrap();
        for way in ways {
            assert_eq!(at(way), file.canonicalize().unwrap(), "{way}");
        }
        assert_eq!(at("a/b/"), at("relative"));
        assert_eq!(resolve(Path::new("/")).unwrap(), Path::new("/"));
    }

    /// A folder that does not exist, a file in its place, and links in a circle are errors.
    #[test]
    fn no_way() {
        let base = tempfile::tempdir().unwrap();
        let at = |path: &str| resolve(&base.path().join(path)).unwrap_err();
        fs::write(base.path().join("file"), "").unwrap();
        symlink("circle", base.path().join("circle")).unwrap();
        assert!(matches!(at("none/file"), ResolveError::NoFolder(_)));
        assert!(matches!(at("file/file"), ResolveError::NoFolder(_)));
        assert!(matches!(at("circle"), ResolveError::Links));
    }
}
