# shellcheck shell=bash
# How this machine's own programs get into an image: with the libraries that they fit. Source it.

# add_file ROOT FILE: to the same place below ROOT, and the file that it may be a link to.
add_file() {
    local root=$1 path
    for path in "$2" "$(realpath "$2")"; do
        case $path in # /bin and the like are links to /usr/bin, here and in the image
        /bin/* | /sbin/* | /lib/* | /lib64/*) path=/usr$path ;;
        esac
        if [[ ! -e $root$path && ! -L $root$path ]]; then
            install -d "$root${path%/*}"
            cp --no-dereference --preserve=mode "$path" "$root$path"
        fi
    done
}
libraries_of() { { ldd "$1" 2>/dev/null || true; } | grep -o '/[^ ]*' || true; } # none: a script, or a static program

# add_libraries ROOT PROGRAM, add_program ROOT NAME: the latter with its libraries, from where PATH has it.
add_libraries() {
    local library
    for library in $(libraries_of "$2"); do add_file "$1" "$library"; done
}
add_program() {
    local program
    program=$(command -v "$2")
    add_file "$1" "$program"
    add_libraries "$1" "$program"
}

# merged_root ROOT: the empty folders of a root whose /bin and the like are links into /usr.
merged_root() {
    local folder
    chmod 755 "$1" # it becomes /, which pods enter as any user
    mkdir -p "$1"/{usr/{bin,sbin,lib,lib64},etc,proc,sys,dev,run,root,var/lib}
    install -d -m 1777 "$1/tmp"
    for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$1/$folder"; done
}

# add_busybox ROOT: busybox, and a link for each of its applets that is not there as a program of its own.
add_busybox() {
    local applet
    cp "$(command -v busybox)" "$1/usr/bin/busybox"
    for applet in $(busybox --list); do
        [[ -e $1/usr/bin/$applet || -e $1/usr/sbin/$applet ]] || ln -s busybox "$1/usr/bin/$applet"
    done
}
