# The program, and what it says about the files that are written for it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    getExe
    mkOption
    mkPackageOption
    types
    ;
  cfg = config.services.blixard;
in
{
  options.services.blixard = {
    package = mkPackageOption pkgs "blixard" { };

    check = mkOption {
      type = types.functionTo (types.functionTo types.package);
      internal = true;
      readOnly = true;
      description = ''
        A function from a subcommand (`check-config`, `check-manifest`) and a file to the same file, which builds only
        if the package accepts it. A package for another machine than the builder can't be asked.
      '';
      default =
        command: file:
        if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
          pkgs.runCommand "checked-${file.name}" { } ''
            ${getExe cfg.package} ${command} ${file}
            cp ${file} $out
          ''
        else
          file;
    };
  };
}
