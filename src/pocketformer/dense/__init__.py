"""Dense prediction on the same backbones: detection and segmentation (V2 Sec. 5.2, Table 3; V1 Sec. 5.2)."""
