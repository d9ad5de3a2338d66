# The module's options without the rest of NixOS, which is far quicker: what else it sets goes nowhere.
{
  lib,
  pkgs,
}:
module:
(lib.evalModules {
  modules = [
    (pkgs.path + "/nixos/modules/misc/assertions.nix")
    ../../modules
    module
    {
      _module.args = { inherit pkgs; };
      _module.freeformType = lib.types.lazyAttrsOf lib.types.anything;
    }
  ];
}).config
