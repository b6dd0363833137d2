//! distrilock: named, distributed locks for every host that can mount a directory.
