# What microvm.nix runs on Linux.
[
  "qemu"
  "cloud-hypervisor"
  "firecracker"
  "crosvm"
  "kvmtool"
  "stratovirt"
  "alioth"
]
