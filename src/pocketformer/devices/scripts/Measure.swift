// Times all models by Core ML on an iPhone or iPad. Not tried by its authors, who have no such device.
//
// In Xcode: a new iOS app; add this file, and the folder models/ as a folder reference (blue), so that it is in the
// app's bundle; call `try await measure()` in a task of the first view; build for Release, run on the device with the
// cable unplugged. results.json is in the app's documents: Window > Devices and Simulators > the app > Download
// Container. Then: pocketformer profile --import results.json --out table.json
import CoreML
import Foundation
#if canImport(UIKit)
import UIKit
#endif

let manifest = "@@manifest"

func measure(units: MLComputeUnits = .all, passes: Int = 2, rounds: Int = 20, group: Int = 12) async throws {
    let folder = Bundle.main.resourceURL!.appendingPathComponent("models")
    let packages = try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
        .filter { $0.pathExtension == "mlpackage" }
    let reference = packages.first { $0.lastPathComponent == "reference.mlpackage" }!
    let others = packages.filter { $0 != reference }
    let configuration = MLModelConfiguration()
    configuration.computeUnits = units

    var found: [[String: [Double]]] = []
    for number in 1...passes {
        let order = others.shuffled()
        for start in stride(from: 0, to: order.count, by: group) {
            var runs: [(String, () throws -> Void)] = []
            var compiledModels: [URL] = []
            defer { for url in compiledModels { try? FileManager.default.removeItem(at: url) } }
            for url in Array(order[start..<min(start + group, order.count)]) + [reference] {
                let compiled = try await MLModel.compileModel(at: url) // a copy in the app's temporary folder
                compiledModels.append(compiled)
                let model = try MLModel(contentsOf: compiled, configuration: configuration)
                let (name, description) = model.modelDescription.inputDescriptionsByName.first!
                let values = try MLMultiArray(shape: description.multiArrayConstraint!.shape, dataType: .float32)
                for i in 0..<values.count { values[i] = NSNumber(value: Float.random(in: -1...1)) }
                let input = try MLDictionaryFeatureProvider(dictionary: [name: values])
                runs.append((url.deletingPathExtension().lastPathComponent, { _ = try model.prediction(from: input) }))
                print("pass \(number) of \(passes), \(start) of \(order.count): \(url.lastPathComponent) loaded")
            }
            var samples: [String: [Double]] = [:]
            for _ in 0..<rounds {
                for (name, run) in runs.shuffled() {
                    try run() // not timed
                    var fastest = Double.infinity
                    for _ in 0..<5 {
                        let begin = DispatchTime.now().uptimeNanoseconds
                        try run()
                        fastest = min(fastest, Double(DispatchTime.now().uptimeNanoseconds - begin) / 1e6)
                    }
                    samples[name, default: []].append(fastest)
                }
            }
            found.append(samples)
        }
    }
    var system = utsname()
    uname(&system)
    let device = withUnsafePointer(to: &system.machine) {
        $0.withMemoryRebound(to: CChar.self, capacity: 1) { String(cString: $0) }
    }
    let results: [String: Any] = [
        "manifest": manifest, "date": String(ISO8601DateFormatter().string(from: Date()).prefix(10)),
        "device": device, "os": ProcessInfo.processInfo.operatingSystemVersionString,
        "runtime": "coreml", "on": units == .all ? "all units" : "\(units.rawValue)", "passes": found,
    ]
    let data = try JSONSerialization.data(withJSONObject: results)
    try data.write(to: FileManager.default.urls(for: .documentDirectory, in: .userDomainMask)[0]
        .appendingPathComponent("results.json"))
    print("done: take results.json out of the app's documents, then: pocketformer profile --import results.json")
}
