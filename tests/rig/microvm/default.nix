# Real microVMs without nixpkgs: a runner for each guest, with the runner contract of microvm.nix.
#
#   bin/microvm-run        becomes the hypervisor; sockets are relative to the working directory
#   bin/microvm-shutdown   asks the guest to stop and returns once it has
#   bin/tap-up, tap-down   there as in microvm.nix, for hosts that use them
#   share/microvm/         hypervisor, tap-interfaces, tap-flags, system
#
# QEMU emulates the processor (TCG) even where there is KVM, so that a test does the same everywhere.
{
  # Directories of programs: busybox, kernel, qemu, socat (see ../image.py).
  parts,
  # { <instance> = { address, mac, tap, memoryMiB, observer }; }: observer is a socket that it is connected to while it lives
  guests,
}:
let
  part =
    name:
    builtins.path {
      inherit name;
      path = parts + "/${name}";
    };
  busybox = part "busybox";
  kernel = part "kernel";
  qemu = part "qemu";
  socat = part "socat";

  build =
    name: environment: script:
    derivation (
      environment
      // {
        inherit name;
        system = builtins.currentSystem;
        builder = "${busybox}/bin/busybox";
        args = [
          "sh"
          "-euc"
          ''
            export PATH=$PWD/bin
            ${busybox}/bin/busybox mkdir bin
            ${busybox}/bin/busybox --install -s bin
            ${script}
          ''
        ];
      }
    );

  # Names sorted, no times, no inode numbers: the same bytes at each build.
  initrd = build "guest-initrd" { } ''
    mkdir -p root/bin root/etc/acpi/PWRF root/proc root/sys root/dev root/tmp root/var/log root/www
    cp ${busybox}/bin/busybox root/bin/busybox
    ln -s busybox root/bin/sh
    cp -r ${kernel}/modules root/modules
    cp ${./guest/init} root/init
    cp ${./guest/inittab} root/etc/inittab
    cp ${./guest/stop} root/bin/stop
    chmod 755 root/init root/bin/stop
    ln -s /bin/stop root/etc/acpi/PWRF/00000080
    cd root
    find . -exec touch -h -d @1 '{}' +
    mkdir $out
    find . | sort | cpio -o -H newc -R 0:0 --ignore-devno --renumber-inodes | gzip -n -1 > $out/initrd
  '';

  # A guest's clocks count its instructions (-icount), since it measures one of them by another as it boots: on a machine with
  # more to do, the guest would wait between the two, and afterwards for timers that are far too late or never done. The
  # time-stamp counter goes at 1 GHz then, which a guest without PIT must be told.
  run =
    instance:
    {
      address,
      mac,
      tap,
      memoryMiB,
      observer,
    }:
    ''
      #!/bin/sh
      set -eu
      clock="no_timer_check tsc_early_khz=1000000 lpj=2000000"
      # Where it is to say itself that it is up, it is up once it answers. Who says so has to be there still when it is heard.
      if [ -n "''${NOTIFY_SOCKET-}" ]; then
        {
          until printf 'GET / HTTP/1.0\r\n\r\n' | ${socat}/bin/socat -t 2 - TCP4:${address}:80,connect-timeout=1 2> /dev/null |
            ${busybox}/bin/busybox grep -q answers; do
            ${busybox}/bin/busybox sleep 0.1
          done
          echo READY=1 | ${socat}/bin/socat - "UNIX-SENDTO:$NOTIFY_SOCKET"
        } &
      fi
      fast="quiet mitigations=off nokaslr apparmor=0 cryptomgr.notests"
      exec ${qemu}/bin/qemu-system-x86_64 \
        -name ${instance} -M microvm,acpi=on,pcie=off,pit=off,pic=off,rtc=on -accel tcg,tb-size=32 -icount shift=auto \
        -m ${toString memoryMiB}M -smp 1 -nodefaults -no-user-config -no-reboot -nographic \
        -kernel ${kernel}/bzImage -initrd ${initrd}/initrd \
        -append "console=ttyS0 reboot=t panic=-1 $clock $fast vm.name=${instance} vm.address=${address}" \
        -chardev stdio,id=stdio,signal=off -serial chardev:stdio \
        -device virtio-rng-device -device i8042 -qmp unix:${instance}.sock,server,nowait \
        -netdev tap,id=net0,ifname=${tap},script=no,downscript=no -device virtio-net-device,netdev=net0,mac=${mac} \
        -chardev socket,id=observer,path=${observer}
    '';

  # -t: under systemd standard input ends at once, and socat is to wait for the guest all the same.
  shutdown = instance: ''
    #!/bin/sh
    [ -S ${instance}.sock ] || exit 0
    key() { printf '{"type":"key","data":{"down":true,"key":{"type":"qcode","data":"%s"}}}' "$1"; }
    (
      echo '{"execute":"qmp_capabilities"}'
      echo '{"execute":"input-send-event","arguments":{"events":['"$(key ctrl),$(key alt),$(key delete)"']}}'
    ) | ${socat}/bin/socat -t 60 STDIO UNIX:${instance}.sock,shut-none
  '';

  tapUp = tap: ''
    #!/bin/sh
    set -eu
    ip tuntap add dev ${tap} mode tap user blixard-vm vnet_hdr
    ip link set ${tap} up
  '';
  tapDown = tap: ''
    #!/bin/sh
    ip tuntap del dev ${tap} mode tap
  '';

  runner =
    instance: guest:
    build "microvm-qemu-${instance}"
      {
        run = run instance guest;
        shutdown = shutdown instance;
        tapUp = tapUp guest.tap;
        tapDown = tapDown guest.tap;
      }
      ''
        mkdir -p $out/bin $out/share/microvm
        printf '%s' "$run" > $out/bin/microvm-run
        printf '%s' "$shutdown" > $out/bin/microvm-shutdown
        printf '%s' "$tapUp" > $out/bin/tap-up
        printf '%s' "$tapDown" > $out/bin/tap-down
        chmod 555 $out/bin/*
        echo qemu > $out/share/microvm/hypervisor
        echo vnet_hdr > $out/share/microvm/tap-flags
        echo ${guest.tap} > $out/share/microvm/tap-interfaces
        ln -s ${initrd} $out/share/microvm/system
      '';
in
builtins.mapAttrs runner guests
